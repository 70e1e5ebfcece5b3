"""Reading and writing of image files: 8/16-bit PNG, TIFF (with stacks), JPEG, BMP and NPY, grey or colour.

A [`Layout`][retune.io.Layout] keeps the properties of a file (bits, resolution, colour profile, axes of a stack), so
that a restored image can be written in the same way as the measured one.

```python
import numpy as np
import retune

np.save("measured.npy", np.zeros((2, 32, 32, 1), dtype="uint16"))  # a file of yours; here two grey images
images, layout = retune.io.read("measured.npy")  # (2, 1, 32, 32), intensities in [0, 1]
retune.io.write("restored.npy", images, layout)  # again 16 bits, (2, 32, 32, 1)
```
"""

from retune.io.files import SUFFIXES, Layout, list_files, load, read, write

__all__ = ["SUFFIXES", "Layout", "list_files", "load", "read", "write"]
