from django.db import models


class Run(models.Model):
    """One run of a task, by the release whose code it ran."""

    task = models.CharField(max_length=40)
    number = models.IntegerField(null=True)
    code = models.CharField(max_length=40)
    release = models.CharField(max_length=40)
    began = models.FloatField()
