"""Pure tensor functions, each with a reference in plain torch."""
