"""Landing assets: files into the raw tables."""
