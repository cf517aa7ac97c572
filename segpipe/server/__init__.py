"""The HTTP server around a served model, and its page. What a request means is in serving."""
