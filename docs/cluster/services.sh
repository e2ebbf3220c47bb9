#!/usr/bin/env bash
# On the head: MLflow's server with PostgreSQL behind it, both on loopback alone. Debian or Ubuntu, after node.sh.
# Run again, it leaves what runs as it is.
#
#   services.sh [PORT]        of MLflow, by default 5000; reach it by `ray attach cluster.yaml -p 5000`
#
# Passwords are made here and stay here, in files of this user alone: ~/.latentune/services sets what searches on this
# machine need (the study's and MLflow's addresses and passwords), and `cat ~/.latentune/mlflow-password` is for the
# browser, where the user is "admin".
set -euo pipefail
umask 077
port=${1:-5000}
settings=$HOME/.latentune
. "$settings/env"

secret() { # NAME: the one that was made before, or a new one
    [[ -s $settings/$1 ]] || python -c 'import secrets; print(secrets.token_urlsafe(24))' > "$settings/$1"
    cat "$settings/$1"
}
as_postgres() { sudo -u postgres psql --quiet --no-align --tuples-only --set ON_ERROR_STOP=1 "$@"; }

python -c 'import flask_wtf' 2> /dev/null || python -m pip install --quiet 'mlflow[auth]' # for the password
if ! command -v psql > /dev/null || ! command -v pg_ctlcluster > /dev/null; then
    sudo apt-get update -qq && sudo DEBIAN_FRONTEND=noninteractive apt-get install -y -qq postgresql
fi
sudo service postgresql start # Debian's default listens on loopback alone
until sudo -u postgres pg_isready --quiet; do sleep 0.5; done

password=$(secret postgresql-password)
# Over stdin, since arguments stand in the list of processes.
as_postgres << SQL
SELECT 'CREATE ROLE latentune LOGIN' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'latentune') \gexec
ALTER ROLE latentune PASSWORD '$password';
SQL
for database in latentune mlflow mlflow_users; do
    as_postgres << SQL
SELECT 'CREATE DATABASE $database OWNER latentune' WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = '$database') \gexec
SQL
done
database=postgresql://latentune:$password@127.0.0.1:5432

cat > "$settings/services" << END
export LATENTUNE_STUDY_URL=$database/latentune
export MLFLOW_TRACKING_URI=http://127.0.0.1:$port
export MLFLOW_TRACKING_USERNAME=admin
export MLFLOW_TRACKING_PASSWORD=$(secret mlflow-password)
END
cat > "$settings/mlflow.ini" << END
[mlflow]
default_permission = NO_PERMISSIONS
database_uri = $database/mlflow_users
admin_username = admin
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
END

if ! curl --silent --fail --output /dev/null "http://127.0.0.1:$port/health"; then
    # All that is secret by environment or file: arguments stand in the list of processes.
    MLFLOW_BACKEND_STORE_URI=$database/mlflow \
        MLFLOW_AUTH_CONFIG_PATH=$settings/mlflow.ini \
        MLFLOW_AUTH_ADMIN_PASSWORD=$(secret mlflow-password) \
        MLFLOW_FLASK_SERVER_SECRET_KEY=$(secret mlflow-secret-key) \
        MLFLOW_DISABLE_TELEMETRY=true \
        MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false \
        MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false \
        nohup python -m mlflow server --app-name basic-auth --host 127.0.0.1 --port "$port" --workers 1 \
        --allowed-hosts "127.0.0.1:$port,localhost:$port" \
        --artifacts-destination "${LATENTUNE_RUNS_DIR%/}/mlartifacts" \
        > "$settings/mlflow.log" 2>&1 < /dev/null &
    for _ in $(seq 240); do
        curl --silent --fail --output /dev/null "http://127.0.0.1:$port/health" && exit 0
        kill -0 $! 2> /dev/null || break
        sleep 0.5
    done
    tail -n 5 "$settings/mlflow.log" >&2
    echo "MLflow's server did not come up: see $settings/mlflow.log" >&2
    exit 1
fi
