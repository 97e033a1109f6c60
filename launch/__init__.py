"""Starts the main job somewhere, with the same --config and overrides everywhere."""
