"""How Alembic runs here: on the connection that `corral.api.migrate` hands over, in its transaction."""

from alembic import context

from corral.api.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    compare_type=True,
    compare_server_default=True,
)
with context.begin_transaction():
    context.run_migrations()
