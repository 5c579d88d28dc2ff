GREETING = "first"
