"""The controller code. Each plugin of the collection imports one class or function from this package."""
