"""Real-time host controller for iontophoresis."""
