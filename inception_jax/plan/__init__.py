"""What a config will do on a pod that is not here: compiled for it, weighed and timed on paper."""
