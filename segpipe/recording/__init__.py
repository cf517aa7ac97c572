"""What a training leaves behind, with MLflow or without: the tree of files, the spool, logged models."""
