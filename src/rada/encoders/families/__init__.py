"""One file a family of encoders; each registers itself, `rada.encoders.registry` finds them."""
