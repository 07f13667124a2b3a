"""All that speaks to people: settings, the locale's language, progress, messages, report pages."""
