"""HTTP/1.1 and stream framing: parsers and encoders without IO, and the sockets."""
