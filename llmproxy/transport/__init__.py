"""HTTP/1.1 and stream framing: sans-IO parsers and writers, and the sockets round them."""
