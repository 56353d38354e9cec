"""Where requests come from: files, random processes, users; and how long they are."""
