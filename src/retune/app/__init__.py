"""``retune app``: a page in the browser on which an image is dropped, restored, and taken away.

`settings` and `desk` know nothing of the browser. `work` computes in a process of its own (`worker`), so that a
computation can be stopped at any moment. Only `page` uses gradio, which the extra ``[app]`` installs.
"""
