"""What a logged model runs when MLflow serves it: requests in, answers out. The server around it is in server."""

from segpipe.serving.served_model import ServedModel

__all__ = ["ServedModel"]  # a model that version 0.5.0 logged brings a file that imports it from here
