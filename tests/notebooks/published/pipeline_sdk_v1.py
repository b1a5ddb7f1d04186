# scikit-learn before a linear learner for each city, then a role for one city's models: version 1 of the SDK.
# The session's keys are those of an assumed role, as in a notebook of SageMaker's, by the AWS settings' profile.

# %% Polyhost's line
from polyhost import notebook; notebook.use()

# %%
import json
import os
import re
import subprocess
import time
from random import choice
from time import gmtime, strftime

import boto3
import numpy as np
import sagemaker
from sagemaker import get_execution_role
from sagemaker.multidatamodel import MULTI_MODEL_CONTAINER_MODE, MultiDataModel
from sagemaker.predictor import csv_serializer

CITIES = ['NewYork_NY', 'LosAngeles_CA', 'Chicago_IL', 'Houston_TX']
PARALLEL_TRAINING_JOBS = 4
MAX_YEAR = 2019

def random_house():
    return [min(MAX_YEAR, int(np.random.normal(1995, 10))), np.random.normal(3000, 750), np.random.randint(2, 7),
            np.random.randint(2, 7) / 2, round(np.random.normal(1.0, 0.25), 2), np.random.randint(0, 4),
            choice(['y', 'n']), choice(['y', 'n'])]

# %%
sm_client = boto3.client(service_name='sagemaker')
runtime_sm_client = boto3.client(service_name='sagemaker-runtime')
sagemaker_session = sagemaker.Session()

s3 = boto3.resource('s3')
s3_client = boto3.client('s3')

BUCKET = sagemaker_session.default_bucket()
role = get_execution_role()
ACCOUNT_ID = boto3.client('sts').get_caller_identity()['Account']
REGION = boto3.Session().region_name

DATA_PREFIX = 'DEMO_MME_LINEAR_LEARNER'
MULTI_MODEL_ARTIFACTS = 'multi_model_artifacts'

# %%
from sagemaker.sklearn.estimator import SKLearn

sklearn_preprocessor = SKLearn(
    entry_point=os.environ['PREPROCESSOR'],
    role=role,
    train_instance_type='ml.c4.xlarge',
    sagemaker_session=sagemaker_session)

# %% In place of training: what jobs would have left in the bucket
TRAINING_JOBS = {}

def fit(file, location, name):
    key = '{}/model_artifacts/{}/{}/output/model.tar.gz'.format(DATA_PREFIX, location, name)
    s3_client.upload_file(os.path.join(os.environ['TRAINED'], file), BUCKET, key)
    TRAINING_JOBS[name] = {'ModelArtifacts': {'S3ModelArtifacts': 's3://{}/{}'.format(BUCKET, key)}}
    return name

job_name = fit('preprocessor.tar.gz', 'preprocessor', 'scikit-learn-preprocessor')

# %%
from sagemaker.amazon.amazon_estimator import get_image_uri

container = get_image_uri(boto3.Session().region_name, 'linear-learner')

# %%
def launch_training_job(location):
    linear = sagemaker.estimator.Estimator(
        container, role, train_instance_count=1, train_instance_type='ml.c4.xlarge',
        output_path='s3://{}/{}/model_artifacts/{}'.format(BUCKET, DATA_PREFIX, location),
        sagemaker_session=sagemaker_session)
    linear.set_hyperparameters(feature_dim=10, mini_batch_size=100, predictor_type='regressor', epochs=10,
                               num_models=32, loss='absolute_loss')
    return fit('linear-{}.tar.gz'.format(location), location, 'linear-learner-{}'.format(len(TRAINING_JOBS)))

training_jobs = [launch_training_job(city) for city in CITIES[:PARALLEL_TRAINING_JOBS]]

# %%
def deploy_artifacts_to_mme(job_name):
    url = TRAINING_JOBS[job_name]['ModelArtifacts']['S3ModelArtifacts']
    source_key = url.split('s3://{}/'.format(BUCKET))[1]
    (city,) = re.findall('model_artifacts/(.*?)/', source_key)
    key = '{0}/{1}/{2}/{2}.tar.gz'.format(DATA_PREFIX, MULTI_MODEL_ARTIFACTS, city)
    s3_client.copy_object(Bucket=BUCKET, CopySource={'Bucket': BUCKET, 'Key': source_key}, Key=key)

# %%
s3.Bucket(BUCKET).objects.filter(Prefix='{}/{}/'.format(DATA_PREFIX, MULTI_MODEL_ARTIFACTS)).delete()

# %% All but the last, which comes later
for job_name in training_jobs[:-1]:
    deploy_artifacts_to_mme(job_name)

# %%
MODEL_NAME = 'housing-{}'.format(strftime('%Y-%m-%d-%H-%M-%S', gmtime()))
ll_multi_model = MultiDataModel(
    name=MODEL_NAME,
    model_data_prefix='s3://{}/{}/{}/'.format(BUCKET, DATA_PREFIX, MULTI_MODEL_ARTIFACTS),
    image=container,
    role=role,
    sagemaker_session=sagemaker_session)

# %% `sklearn_preprocessor.create_model()` asks the training job; this is what it makes of it
from sagemaker.pipeline import PipelineModel
from sagemaker.sklearn.model import SKLearnModel

scikit_learn_inference_model = SKLearnModel(
    TRAINING_JOBS['scikit-learn-preprocessor']['ModelArtifacts']['S3ModelArtifacts'],
    role,
    sklearn_preprocessor.entry_point,
    py_version='py3',
    sagemaker_session=sagemaker_session)

# %%
timestamp_prefix = strftime('%Y-%m-%d-%H-%M-%S', gmtime())
endpoint_name = 'inference-pipeline-ep-{}'.format(timestamp_prefix)

sm_model = PipelineModel(
    name='inference-pipeline-{}'.format(timestamp_prefix),
    role=role,
    sagemaker_session=sagemaker_session,
    models=[scikit_learn_inference_model, ll_multi_model])

sm_model.deploy(initial_instance_count=1, instance_type='ml.m4.xlarge', endpoint_name=endpoint_name)

# %%
from sagemaker.content_types import CONTENT_TYPE_CSV, CONTENT_TYPE_JSON
from sagemaker.predictor import RealTimePredictor, csv_serializer, json_deserializer, json_serializer

predictor = RealTimePredictor(
    endpoint=endpoint_name,
    sagemaker_session=sagemaker_session,
    serializer=csv_serializer,
    content_type=CONTENT_TYPE_CSV,
    accept=CONTENT_TYPE_JSON)

# %%
predicted = []

def predict_one_house_value(features, model_name, predictor_to_use):
    start_time = time.time()
    response = predictor_to_use.predict(features, target_model=model_name)
    value = json.loads(response)['predictions'][0]['score']
    print('${:,.2f}, took {:,d} ms\n'.format(value, int((time.time() - start_time) * 1000)))
    predicted.append([model_name, features, value])

# %%
for _ in range(10):
    city = CITIES[np.random.randint(0, PARALLEL_TRAINING_JOBS - 1)]
    predict_one_house_value(random_house(), '{0}/{0}.tar.gz'.format(city), predictor)

# %% A model more, while the endpoint serves
deploy_artifacts_to_mme(training_jobs[PARALLEL_TRAINING_JOBS - 1])

# %%
city = CITIES[PARALLEL_TRAINING_JOBS - 1]
predict_one_house_value(random_house(), '{0}/{0}.tar.gz'.format(city), predictor)

# %% Copies of a model
def copy_additional_artifacts_to_mme(num_copies):
    source = '{0}/{1}/{2}/{2}.tar.gz'.format(DATA_PREFIX, MULTI_MODEL_ARTIFACTS, city)
    for i in range(num_copies):
        key = '{0}/{1}/{2}/{3}_{2}.tar.gz'.format(DATA_PREFIX, MULTI_MODEL_ARTIFACTS, city, i)
        s3_client.copy_object(Bucket=BUCKET, CopySource={'Bucket': BUCKET, 'Key': source}, Key=key)

copy_additional_artifacts_to_mme(10)

# %%
def invoke_multiple_models_mme(low, high):
    for i in range(low, high):
        predict_one_house_value(random_house(), '{0}/{1}_{0}.tar.gz'.format(city, i), predictor)

invoke_multiple_models_mme(0, 5)
invoke_multiple_models_mme(0, 5)
invoke_multiple_models_mme(0, 10)

# %% Who may call which model
iam_client = boto3.client('iam')

# %%
role_name = 'allow_invoke_ny_model_role{}'.format(strftime('%Y-%m-%d-%H-%M-%S', gmtime()))
trust_policy = {
    'Version': '2012-10-17',
    'Statement': [
        {'Sid': 'statement1', 'Effect': 'Allow', 'Principal': {'AWS': role}, 'Action': 'sts:AssumeRole'}]}

# %%
response = iam_client.create_role(
    Path='/',
    RoleName=role_name,
    AssumeRolePolicyDocument=json.dumps(trust_policy),
    Description='Role that allows invoking a single model',
    MaxSessionDuration=3600)

# %%
role_arn = response['Role']['Arn']
endpoint_resource_arn = 'arn:aws:sagemaker:{}:{}:endpoint/{}'.format(REGION, ACCOUNT_ID, endpoint_name)

# %%
managed_policy = {
    'Version': '2012-10-17',
    'Statement': [{
        'Sid': 'SageMakerAccess',
        'Action': 'sagemaker:InvokeEndpoint',
        'Effect': 'Allow',
        'Resource': endpoint_resource_arn,
        'Condition': {'StringLike': {'sagemaker:TargetModel': ['NewYork_NY/*']}}}]}

response = iam_client.create_policy(
    PolicyName='allow_invoke_ny_model_policy{}'.format(strftime('%Y-%m-%d-%H-%M-%S', gmtime())),
    PolicyDocument=json.dumps(managed_policy))
policy_arn = response['Policy']['Arn']

# %%
iam_client.attach_role_policy(PolicyArn=policy_arn, RoleName=role_name)

# %% The second line of Polyhost's: `!polyhost add-role $role_name`
subprocess.run([os.environ['POLYHOST'], 'add-role', role_name], check=True)

# %%
sts_connection = boto3.client('sts')
assumed_role_limited_access = sts_connection.assume_role(RoleArn=role_arn, RoleSessionName='MME_Invoke_NY_Model')
assumed_role_arn = assumed_role_limited_access['AssumedRoleUser']['Arn']

# %%
trust_policy['Statement'].append(
    {'Sid': 'statement2', 'Effect': 'Allow', 'Principal': {'AWS': assumed_role_arn}, 'Action': 'sts:AssumeRole'})
iam_client.update_assume_role_policy(RoleName=role_name, PolicyDocument=json.dumps(trust_policy))

# %%
runtime_sm_client_with_assumed_role = boto3.client(
    service_name='sagemaker-runtime',
    aws_access_key_id=assumed_role_limited_access['Credentials']['AccessKeyId'],
    aws_secret_access_key=assumed_role_limited_access['Credentials']['SecretAccessKey'],
    aws_session_token=assumed_role_limited_access['Credentials']['SessionToken'])

# %%
sagemakerSessionAssumedRole = sagemaker.Session(sagemaker_runtime_client=runtime_sm_client_with_assumed_role)

# %%
predictorAssumedRole = RealTimePredictor(
    endpoint=endpoint_name,
    sagemaker_session=sagemakerSessionAssumedRole,
    serializer=csv_serializer,
    content_type=CONTENT_TYPE_CSV,
    accept=CONTENT_TYPE_JSON)

# %%
predict_one_house_value(random_house(), 'NewYork_NY/NewYork_NY.tar.gz', predictorAssumedRole)

# %% This one fails, as it should
try:
    predict_one_house_value(random_house(), 'Chicago_IL/Chicago_IL.tar.gz', predictorAssumedRole)
except Exception as error:
    refused = [type(error).__name__, str(error)]

# %%
predictor.delete_endpoint()
predictor.delete_model()

# %%
iam_client.detach_role_policy(PolicyArn=policy_arn, RoleName=role_name)
iam_client.delete_role(RoleName=role_name)
iam_client.delete_policy(PolicyArn=policy_arn)
