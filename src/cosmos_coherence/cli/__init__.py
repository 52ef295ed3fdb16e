"""The command line: parse, call the flow, render its events and reports."""
