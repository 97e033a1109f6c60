"""From files to batches of uint8 images, and on the device to normalised ones."""
