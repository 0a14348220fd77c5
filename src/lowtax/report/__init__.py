"""The page on which people read a study: its table and frontier, and the replies, answers and updates behind them."""
