"""The front door: OpenAI REST and gRPC in, placed and streamed answers out."""
