"""What the scripts with the real SDK share: a workspace, and a submission that is followed to its end."""
import io, json, sys, time, zipfile

import requests
from azureml._execution._commands import _serialize_run_config_to_dict
from azureml.core import Workspace
from azureml.core.authentication import ServicePrincipalAuthentication

tenant, client, secret, subscription, group, name = sys.argv[1:]
auth = ServicePrincipalAuthentication(tenant, client, secret)
ws = Workspace.get(name, auth=auth, subscription_id=subscription, resource_group=group)


def submit(run_config):
    """The id of a run of `project/hello.py` that is over.

    The definition is the SDK's own; it travels as in the REST example, because the SDK's way uploads a snapshot first, which is another service.
    """
    definition = {"Configuration": _serialize_run_config_to_dict(run_config)}
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as project:
        project.write("project/hello.py", "hello.py")
    base = f"https://{ws.location}.api.azureml.ms"
    scope = f"/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.MachineLearningServices/workspaces/{name}"
    files = [("runDefinitionFile", ("definition.json", json.dumps(definition))), ("projectZipFile", ("project.zip", archive.getvalue()))]
    answer = requests.post(f"{base}/execution/v1.0{scope}/experiments/sdk/startrun", files=files, headers=auth.get_authentication_header())
    run = answer.json().get("runId")
    if not run:
        sys.exit(answer.text)
    while True:
        status = requests.get(f"{base}/history/v1.0{scope}/runs/{run}", headers=auth.get_authentication_header()).json()["status"]
        if status in ("Completed", "Failed", "Canceled", "Cancelled"):
            return run
        time.sleep(0.5)
