"""Reading and writing of image files: 8/16-bit PNG, TIFF (with stacks), JPEG, BMP and NPY, grey or colour.

What a file says of itself (bits, resolution, colour profile, axes of a stack) is kept in a
[`Layout`][retune.io.Layout], so that a
restored image can be written the way the measured one was.

>>> from retune import io
>>> images, layout = io.read("measured.tif")  # doctest: +SKIP
>>> io.write("restored.tif", images, layout)  # doctest: +SKIP
"""

from retune.io.files import SUFFIXES, Layout, list_files, load, read, write

__all__ = ["SUFFIXES", "Layout", "list_files", "load", "read", "write"]
