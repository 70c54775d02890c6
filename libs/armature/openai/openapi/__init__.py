"""The gateway's description of itself: an OpenAPI document made of its own types, and a page that shows it."""
