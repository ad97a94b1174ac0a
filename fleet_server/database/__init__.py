"""Where state rests: engine, schema, migrations, the one writer, and wake-ups. The only room that knows which
database it is."""
