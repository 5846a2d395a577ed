"""Models end to end: steps of decoding and prompts timed beside other runtimes, and whether the text is the same."""
