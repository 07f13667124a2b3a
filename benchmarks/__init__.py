"""What npgpt is measured against, and how. See README.md here."""
