# Churn in 51 states by XGBoost, the same models at two endpoints: version 2 of the SDK.

# %% Polyhost's line
from polyhost import notebook; notebook.use()

# %%
import json
import os
import time
from time import gmtime, strftime

import boto3
import numpy as np
import pandas as pd
import sagemaker

role = sagemaker.get_execution_role()
sess = sagemaker.Session()
region = sess.boto_region_name
bucket = sess.default_bucket()
prefix = 'sagemaker/churn-mme'

# %%
df = pd.read_csv(os.path.join(os.environ['TRAINED'], 'churn.txt'))
df['CustomerID'] = df.index
binary_columns = ["Int'l Plan", 'VMail Plan']
df[binary_columns] = df[binary_columns].map({'yes': 1, 'no': 0}.get)
df.index = df['CustomerID']

# %%
from sagemaker.amazon.amazon_estimator import image_uris

image = image_uris.retrieve(region=region, framework='xgboost', version='1.3-1')

# %% In place of training
s3_client = boto3.client('s3')

class Trained:
    def __init__(self, state):
        key = '{}/churn_data/training/{}/output/model.tar.gz'.format(prefix, state)
        s3_client.upload_file(os.path.join(os.environ['TRAINED'], 'churn-{}.tar.gz'.format(state)), bucket, key)
        self.model_data = 's3://{}/{}'.format(bucket, key)

dict_estimator = {state: Trained(state) for state in df['State'].unique()}

# %% Without a slash at its end
model_data_prefix = f's3://{bucket}/{prefix}/churn_data/multi_model_artifacts'

# %% `aws s3 cp`
for state, est in dict_estimator.items():
    source = dict(zip(('Bucket', 'Key'), est.model_data[5:].split('/', 1)))
    s3_client.copy_object(Bucket=bucket, CopySource=source, Key=f'{model_data_prefix}/churn-xgb-{state}.tar.gz'.split('/', 3)[3])

# %%
exp_datetime = strftime('%Y-%m-%d-%H-%M-%S', gmtime())
model_name = f'churn-xgb-mme-{exp_datetime}'
endpoint_name = f'{model_name}-c5-xl'
container = {'Image': image, 'ModelDataUrl': model_data_prefix, 'Mode': 'MultiModel'}
response1 = sess.sagemaker_client.create_model(ModelName=model_name, ExecutionRoleArn=role, Containers=[container])

# %%
response2 = sess.sagemaker_client.create_endpoint_config(
    EndpointConfigName=endpoint_name,
    ProductionVariants=[{'InstanceType': 'ml.c5.xlarge', 'InitialInstanceCount': 1, 'InitialVariantWeight': 1,
                         'ModelName': model_name, 'VariantName': 'AllTraffic'}])

# %%
response3 = sess.sagemaker_client.create_endpoint(EndpointName=endpoint_name, EndpointConfigName=endpoint_name)

# %%
endpoint_name_2 = f'{model_name}-c5-2xl'
response4 = sess.sagemaker_client.create_endpoint_config(
    EndpointConfigName=endpoint_name_2,
    ProductionVariants=[{'InstanceType': 'ml.c5.2xlarge', 'InitialInstanceCount': 1, 'InitialVariantWeight': 1,
                         'ModelName': model_name, 'VariantName': 'AllTraffic'}])

# %%
response5 = sess.sagemaker_client.create_endpoint(EndpointName=endpoint_name_2, EndpointConfigName=endpoint_name_2)

# %%
waiter = sess.sagemaker_client.get_waiter('endpoint_in_service')
waiter.wait(EndpointName=endpoint_name)
waiter.wait(EndpointName=endpoint_name_2)

# %% What the load test's users send
sagemaker_runtime = boto3.client('sagemaker-runtime')
predicted = []

def test_endpoint(endpoint_name):
    sample = df.sample()
    state = sample['State'].values[0]
    features = sample[[name for name in sample.columns if name not in ('State', 'CustomerID')]]
    data = np.array2string(features.values[0], separator=',', max_line_width=10000)[1:-1]
    response = sagemaker_runtime.invoke_endpoint(
        EndpointName=endpoint_name, ContentType='text/csv', TargetModel=f'churn-xgb-{state}.tar.gz', Body=data)
    predicted.append([endpoint_name, state, features.values[0].tolist(), json.loads(response['Body'].read())[0]])

for name in (endpoint_name, endpoint_name_2):
    for _ in range(100):
        test_endpoint(name)

# %%
sess.sagemaker_client.delete_endpoint(EndpointName=endpoint_name)
sess.sagemaker_client.delete_endpoint(EndpointName=endpoint_name_2)
