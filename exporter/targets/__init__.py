"""Ways to run a bundle: modules with the same verbs (``build``, ``open``)."""
