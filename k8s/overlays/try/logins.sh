# Run once by the image of Postgres, as the owner: the service's own login, which owns nothing.
psql -v ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" -v password="$(cat /secrets/login-password)" <<'SQL'
CREATE ROLE causeway_service NOLOGIN;
CREATE ROLE causeway_login LOGIN PASSWORD :'password' IN ROLE causeway_service;
SQL
