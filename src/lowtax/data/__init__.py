"""Training data and prompt sets: reading them from files and the hub, and rendering them by chat templates."""
