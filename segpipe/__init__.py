"""segpipe: from a folder of images and masks to an evaluated, promoted and served segmentation model."""

__version__ = "0.8.0"
