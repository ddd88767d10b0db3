"""Mathematics of metrics: pure functions of arrays, each against a reference that is stated with the value."""
