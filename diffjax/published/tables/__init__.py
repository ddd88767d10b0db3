"""Tables of published networks: one file per network of this package, one function per naming."""
