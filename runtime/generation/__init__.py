"""Token generation over any backend: options, processors, greedy search, sampling, beam search."""
