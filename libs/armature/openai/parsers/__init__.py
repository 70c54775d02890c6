"""From an answer's text to what it says: content, reasoning and tool calls. One small state machine per family."""
