"""Live painting: cameras, screens, drawings and video files through a stream, in a browser, a window or a file."""
