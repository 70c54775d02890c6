"""Routes that take a body: from bytes to an answer, whole or streamed, in the words of each API."""
