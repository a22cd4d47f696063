"""A regulated loop on a linear load, in virtual time: for Monte-Carlo surveys and property tests."""
