"""Pictures in and out: cameras, screens, windows and video files."""
