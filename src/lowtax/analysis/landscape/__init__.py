"""Safety while weights are moved."""
