"""The demo model: a small trained M3 that ships inside the package, its training and its evaluation."""
