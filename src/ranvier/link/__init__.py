"""The two ends of the engine process: messages, the service behind them, the client."""
