"""Networks whose features are compared, one file a kind; `harness.metrics.features` lists them."""
