"""Reading and writing of image files: 8/16-bit PNG, TIFF (with stacks), JPEG, BMP and NPY, grey or colour.

A [`Layout`][retune.io.Layout] keeps the properties of a file (bits, resolution, colour profile, axes of a stack), so
that a restored image can be written in the same way as the measured one.


>>> from retune import io
>>> images, layout = io.read("measured.tif")  # doctest: +SKIP
>>> io.write("restored.tif", images, layout)  # doctest: +SKIP
"""

from retune.io.files import SUFFIXES, Layout, list_files, load, read, write

__all__ = ["SUFFIXES", "Layout", "list_files", "load", "read", "write"]
