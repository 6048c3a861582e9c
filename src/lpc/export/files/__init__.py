"""Files that are copied into exported folders. None of them imports this package."""
