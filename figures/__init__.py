"""From a grid to results (`run`), and from results to figures (`plot`)."""
