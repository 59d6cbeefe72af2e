"""The ground floor: checks, settings, messages, what every module may use."""
