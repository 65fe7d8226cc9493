"""Customer three, videos without end: chunks of frames that see the frames before them."""
