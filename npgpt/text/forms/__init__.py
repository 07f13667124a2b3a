"""What files of other forms than plain text say, and in which encoding."""
