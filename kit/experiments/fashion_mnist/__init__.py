"""The article's experiment: a small network on Fashion-MNIST."""
